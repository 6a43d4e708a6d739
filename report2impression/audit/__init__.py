"""What is wrong with a data set, and what a trained model recites of it."""
