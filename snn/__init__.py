"""Spiking neural networks in PyTorch: neurons, layers, models, losses and what their activity costs.

Needs torch and numpy only. Tensors carry their axes in their names:

====  ==================================================
T     timesteps (always the first axis)
B     examples of a batch
C H W channels and space
N     neurons or features
K     classes
====  ==================================================

so ``x_TBCHW`` is ``[T, B, C, H, W]`` and ``logits_TBK`` is ``[T, B, K]``.
"""
