"""PCB-Merging (Du et al. 2024, arXiv 2410.02396): parameters of the task models compete, and the losers are dropped."""
