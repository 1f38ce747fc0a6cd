"""What people said: comparisons of completions, read from other tools' files and written for them."""
