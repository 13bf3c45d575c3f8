"""The benchmark of whole transfers: benches/run.py."""
