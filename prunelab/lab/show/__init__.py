"""What is shown: figures, tables, panels, and the form of measured values."""
