"""What serves an exported model: files that `nrt export` writes beside the weights. None of them is imported by nrt."""
