"""`robustrun list`: what can be composed, one line each."""

from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """What can be composed, one line each."""
    from robustrun.catalogue import GROUPS, markdown, options

    arguments = parser("list", "What can be composed, one line each.")
    arguments.add_argument("group", nargs="?", help=f"one of {', '.join(GROUPS)}; all if left out")
    arguments.add_argument("--markdown", action="store_true", help="as a page, with the keys of every option")
    chosen = arguments.parse_args(argv)
    group = chosen.group
    if chosen.markdown:
        print(markdown([group] if group else GROUPS))
        return 0
    for name in [group] if group else GROUPS:
        found = options(name)
        if not group:
            print(f"\n{name}: {GROUPS[name]}")
        width = max((len(option) for option in found), default=0)
        for option, description in found.items():
            print(f"  {option:<{width}}  {description}".rstrip())
    return 0
