"""What a user asks for: recipes, their compilation to a Ray Data graph, the command line."""
