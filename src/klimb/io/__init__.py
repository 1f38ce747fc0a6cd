"""Files that are whole or not there, pages, and text that is safe to show."""
