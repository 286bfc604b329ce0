"""Merging: the methods, one file each, and the engine that feeds them tensors. Importing the package registers them."""

from mergeline.merging import average, pcb, task_arithmetic  # noqa: F401
