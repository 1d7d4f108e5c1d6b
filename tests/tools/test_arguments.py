"""The command line of train_net.py."""

from hicl_d2.tools.arguments import train_arguments


def test_flags_may_stand_before_and_after_the_overrides() -> None:
    args = train_arguments(
        ["--config-file", "f", "SOLVER.BASE_LR", "-1e-3", "--resume", "X", "-1", "--num-gpus", "0"]
    )
    assert args.opts == ["SOLVER.BASE_LR", "-1e-3", "X", "-1"]
    assert (args.resume, args.num_gpus, args.eval_only, args.dist_url) == (True, 1, False, "auto")
