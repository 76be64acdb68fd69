"""What the exit codes of processes mean for their job."""

import pytest

from transfusion_jax.launching.policy import combine_codes, restarts


@pytest.mark.parametrize(
    ("codes", "job"),
    [
        ([0, 0, 0], 0),
        ([75, 75], 75),
        ([137, 134, 2], 2),  # the host that knew why, whenever it ended
        ([134, 3], 3),
        ([1, 74], 74),
        ([75, 137], 75),  # the state was saved before one of them was killed
        ([76, 76, 137], 137),  # those that lost another one may end before it
        ([76, 76], 76),
        ([1, 134], 1),  # the first to fail is the cause
        ([0, 137, 134], 137),
    ],
)
def test_the_code_of_a_job_is_that_which_says_most(codes, job):
    assert combine_codes(codes) == job


def test_only_codes_that_another_start_can_mend_restart():
    assert [code for code in (0, 1, 2, 3, 74, 75, 76, 130, 134, 137, 139, 143) if not restarts(code)] == [
        0,
        2,
        3,
        74,
    ]
