"""OpenVINO: runs an artifact's graphs on the CPU, in float32, bfloat16 or int8."""
