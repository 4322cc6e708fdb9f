"""What is stopped: anything that advances a batch of items step by step."""
