"""How a run is shown: terminal, notebook and report."""
