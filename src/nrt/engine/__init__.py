"""Engine: holds the weights, scores rows and takes optimizer steps."""
