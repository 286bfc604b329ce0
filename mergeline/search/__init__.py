"""The search for coefficients of PCB-Merging: which are tried, in what order, and what each of them costs."""
