"""What a report is made of, and its forms: text, records, a page."""
