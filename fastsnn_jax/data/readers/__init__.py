"""One reader for each form in which pictures and labels come."""
