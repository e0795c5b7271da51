"""Speed and memory, measured; each prints its figure and its bar last, and exits 1 where it falls short. Not part of any test."""
