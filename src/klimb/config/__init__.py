"""Options of each verb, checked before anything heavy is loaded."""
