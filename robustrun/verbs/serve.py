"""`robustrun serve`: a finished model behind HTTP, in the plain format (see robustrun.query.server)."""

import contextlib
from pathlib import Path

from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """Serve until interrupted."""
    arguments = parser("serve", "Serve a finished classifier over HTTP: POST /classify takes base64 PNG images.")
    arguments.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    arguments.add_argument("--state", default="last", help="which state of the model (last)")
    arguments.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    arguments.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for any (8080)")
    arguments.add_argument("--device", default="cpu", help="where the model runs (cpu)")
    chosen = arguments.parse_args(argv)
    from robustrun.errors import ConfigError
    from robustrun.query import ClassifierServer
    from robustrun.roles import ClassificationSpec
    from robustrun.saved import load_fitted

    fitted, spec = load_fitted(chosen.run, chosen.device)
    if not isinstance(spec, ClassificationSpec) or len(spec.input_shape) != 3:
        raise ConfigError(f"{chosen.run} holds no classifier of images, which is what can be served")
    try:
        model = fitted.at(chosen.state)
    except KeyError as error:
        raise ConfigError(f"{chosen.run}: {error.args[0]}") from None
    server = ClassifierServer(model, spec.input_shape, host=chosen.host, port=chosen.port)
    print(f"serving {chosen.run} at {server.url}; Ctrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve()
    return 0
