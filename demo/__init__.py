"""The demonstration, and the embedded servers that it shares with the tests."""
