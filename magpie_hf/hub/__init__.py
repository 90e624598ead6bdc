"""What has to do with the Hub: the released schema, cards, pushing."""
