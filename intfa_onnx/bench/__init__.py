"""Benchmarks beside the peers: verify, then time; medians of interleaved rounds; ratios that admit noise."""
