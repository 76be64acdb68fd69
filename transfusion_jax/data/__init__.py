"""From files to batches: documents, the row plan, the stream."""
