"""What holds the weights and moves them."""
