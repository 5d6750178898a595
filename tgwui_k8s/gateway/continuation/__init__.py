"""Streams that outlive the endpoint they began on."""
