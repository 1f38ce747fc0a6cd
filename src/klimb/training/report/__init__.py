"""What a person sees of a run: the terminal and the report."""
