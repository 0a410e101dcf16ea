"""What a run achieved: tables for the terminal, plots, and one self-contained HTML file."""
