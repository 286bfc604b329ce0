"""Merging: the methods, one file each, and the engine that feeds them tensors. Importing the package registers them."""

from mergeline.merging import (  # noqa: F401
    average,
    breadcrumbs,
    dare,
    della,
    fisher,
    iso_c,
    model_stock,
    multi_slerp,
    pcb,
    regmean,
    slerp,
    task_arithmetic,
    ties,
    tsv,
    wudi,
)
