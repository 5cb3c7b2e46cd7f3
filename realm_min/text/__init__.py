"""From documents and questions to blocks and wordpieces, and the evidence as the reader gets it."""
