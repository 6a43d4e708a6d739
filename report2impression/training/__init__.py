"""What the loop calls: updates, sums of gradients, validation."""
