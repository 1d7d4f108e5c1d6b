"""Whether a module's calls are anybody else's business: faster forms of a computation leave such a module as it is."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_watched(module: nn.Module) -> bool:
    """Return whether a hook, of the module or of all modules, or a ``forward`` put in its place sees the module's calls."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or _has_any_global_hook()
    )
