"""What is trained and loaded: halting models, optimizer models and their cards."""
