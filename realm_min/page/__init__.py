"""`realm-min page`: a local page that asks the running model and shows what it computes on the way."""
