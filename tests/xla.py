"""XLA's flags for tests, which compile far more than they compute."""


def flags(devices: int) -> str:
    """So many devices of one CPU, without what makes programs fast: it takes most of the time to compile them."""
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    return f"--xla_force_host_platform_device_count={devices} {quick}"


ONE_DEVICE = {"XLA_FLAGS": flags(1)}  # for a process's environment: that of tests has eight
