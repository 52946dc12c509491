"""The course as a whole: notebooks copied, machines checked, editions, guide and site."""
