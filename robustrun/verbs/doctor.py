"""`robustrun doctor`: what works on this machine."""

from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """Device, versions, data, disk, SLURM, wandb: what works here."""
    parser("doctor", "What works here: device, versions, data, disk, SLURM, wandb.").parse_args(argv)
    from robustrun.doctor import examine

    return examine()
