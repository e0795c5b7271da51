"""Evaluation of trained models: benchmarks, answer likelihoods, and a judge's scores of traces."""
