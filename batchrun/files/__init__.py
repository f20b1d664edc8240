"""The only room that knows rows and lines on disk: input in, output out."""
