"""What one lesson alone needs: its exercises, drawings and experiments, and its teaching notes."""
