"""What a trained model is worth: how sure it is of an answer, and what a judge says of its traces."""
