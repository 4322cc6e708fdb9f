"""What every room needs: errors, settings, streams, tensors, files, workers."""
