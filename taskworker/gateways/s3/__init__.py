"""S3: buckets and objects over a user's files, for programs that speak Amazon's protocol."""
