"""Torch's private names, one to a function; a test holds each to what it is used for."""

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def transforms_active() -> bool:
    """Whether the caller runs inside a transform of `torch.func`, such as vmap."""
    return bool(torch._C._are_functorch_transforms_active())


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches the module's calls: hooks of its own, or hooks on all modules."""
    return _has_any_global_hook() or any(getattr(module, hooks) for hooks in _HOOKS)
