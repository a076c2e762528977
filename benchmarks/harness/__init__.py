"""What the benchmarks share: specifications, protocols, data sets, networks, measuring, results, reports."""
