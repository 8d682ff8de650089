r"""The LinearConv of given filters: primary filters and coefficients that come as close to them as the variant allows.

    W ~ C W_p,    C = [I ; A],    W (F, K),    W_p (P, K),    A (F - P, P)

For any A the best primary filters are W_p = T W with T = C^+ = (I + A^T A)^-1 [I  A^T], whatever the inputs are weighed
by; what is left over is (I - C T) W. So only A is looked for, and all that counts of the filters is a root S of their
second moments S S^T (F, F): S = W fits the filters, S S^T = E[y y^T] of the layer's outputs y fits the outputs.

    full_rank   A of the best subspace, the first P left singular vectors of S (Eckart-Young)
    low_rank    A = column @ row: alternately the best A of that rank (reduced-rank regression) and the best W_p
    sparse      A with a given number of zeros: alternately those whose loss costs least, and the best W_p

The alternations start from the first P filters as primary ones with the secondary ones regressed on them, go down from
there, and are tried from the full-rank solution too. All is computed in float64.
"""

from functools import partial

import torch

SMALLEST_LIFTED = 1e-4  # bounds the coefficients by its reciprocal
RIDGE = 1e-7  # of the largest eigenvalue of the primary filters' moments; keeps regressions from huge coefficients
GOOD_ENOUGH = 1.002  # times the smallest error: a solution of smaller coefficients is preferred
MOST_ROUNDS = 100
MOST_CHOICES = 4  # of the coefficients to prune
LEAST_GAIN = 1e-4  # share of the error by which a round of an alternation must lower it, or it was the last
CONJUGATE_GRADIENTS = 60


def root_of(filters):
    """Square or narrow root S of the second moments of filters (F, ...), S S^T = W W^T: (F, min(F, K)), float64."""
    rows = filters.detach().flatten(1).double()
    if rows.shape[1] <= rows.shape[0]:
        return rows
    return torch.linalg.qr(rows.T, mode="r").R.T


def root_of_moments(moments):
    """Root S (F, F) of a symmetric matrix of second moments S S^T (F, F), negative rounding errors cut off."""
    values, vectors = torch.linalg.eigh(moments.double())
    return vectors * values.clamp_min(0).sqrt()


def primary_of(coefficients, filters):
    """The best primary filters (P, ...) for coefficients A (F - P, P): T W of the filters W (F, ...), float64."""
    primary = coefficients.shape[1]
    rows = filters.detach().double().flatten(1)
    gram = coefficients.T @ coefficients
    gram.diagonal().add_(1)
    right = rows[:primary] + coefficients.T @ rows[primary:]
    best = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    return best.view(primary, *filters.shape[1:])


def residual(coefficients, root):
    """What the best primary filters leave over, (I - C T) S, of a root S (F, r)."""
    best = primary_of(coefficients, root)
    return root - torch.cat((best, coefficients @ best))


def error(coefficients, root):
    """Frobenius norm of what the best primary filters leave over of a root."""
    return torch.linalg.vector_norm(residual(coefficients, root)).item()


def full_rank(root, primary, dtype=torch.float32):
    """Coefficients A (F - P, P) of the best LinearConv with P primary filters.

    With U the first P left singular vectors of S, A = U_s U_p^-1 would be exact. Where the first P filters hardly
    vary in a direction that the others need, U_p is close to singular and A is huge, so small singular values of U_p
    are lifted to a limit: the secondary filters stay exact, the primary ones change by less than the limit. The norm of
    A is at most the limit's reciprocal, 1e4 at most. The largest limit is taken whose error, with everything rounded
    to the layer's precision, is hardly larger than the smallest.

    Args:
        root (Tensor): (F, r).
        primary (int): P.
        dtype (torch.dtype): of the layer's parameters.
    """
    left = torch.linalg.svd(root, full_matrices=False).U[:, :primary]
    vectors, values, turned = torch.linalg.svd(left[:primary], full_matrices=False)
    solutions = []
    for exponent in range(9):
        limit = 10 ** (-exponent / 2)  # 1 down to SMALLEST_LIFTED
        lifted = values.clamp_min(max(limit, SMALLEST_LIFTED))
        coefficients = left[primary:] @ turned.T / lifted @ vectors.T
        solutions.append((_rounded_error(coefficients, root, dtype), coefficients))
    allowed = GOOD_ENOUGH * min(loss for loss, _ in solutions)
    return next(coefficients for loss, coefficients in solutions if loss <= allowed)


def _rounded_error(coefficients, root, dtype):
    """The error with primary rows and coefficients in lower precision."""
    rounded = coefficients.to(dtype).double()
    best = primary_of(rounded, root).to(dtype).double()
    return torch.linalg.vector_norm(root - torch.cat((best, rounded @ best))).item()


def low_rank(root, primary, rank, start):
    """Factors (F - P, R) and (R, P) of the coefficients, R = `rank`, of balanced norms.

    Args:
        root (Tensor): (F, r).
        primary (int): P.
        rank (int): R; above min(F - P, P) the factors are filled up with zeros.
        start (Tensor): coefficients (F - P, P) that the alternation may start from, as those of full rank.
    """
    if rank >= min(start.shape):
        return _factorise(start, rank)
    return _factorise(_best_alternation(root, primary, start, partial(_reduced_rank_regression, root, rank)), rank)


def sparse(root, primary, pruned, start):
    """Coefficients (F - P, P) of which `pruned` are zero, and their mask (F - P, P) of zeros and ones.

    Which ones go is decided by what their loss costs when the others of their row make up for it, a^2 / (H^-1)_jj with
    H the second moments of the primary filters (Hassibi & Stork, "Optimal Brain Surgeon", 1993).

    Args: as in :func:`low_rank`.
    """
    chosen = _best_alternation(root, primary, start, partial(_prune_and_regress, root, pruned), MOST_CHOICES)
    mask = _mask_of_smallest(chosen.abs(), pruned)
    return _alternate(root, primary_of(chosen, root), partial(_masked_regression, root, mask)), mask


def _best_alternation(root, primary, start, fit, most_rounds=MOST_ROUNDS):
    begins = root[:primary], primary_of(start, root)
    return min((_alternate(root, begin, fit, most_rounds) for begin in begins), key=partial(error, root=root))


def _alternate(root, primary_root, fit, most_rounds=MOST_ROUNDS):
    """Alternate `fit(primary rows of the root) -> coefficients` and the best primary rows for them.

    Returns the best coefficients seen.
    """
    best, least = None, float("inf")
    for _ in range(most_rounds):
        coefficients = fit(primary_root)
        loss = error(coefficients, root)
        gained = least - loss
        if best is None or loss < least:
            best, least = coefficients, loss
        if not gained > LEAST_GAIN * loss:
            break
        primary_root = primary_of(coefficients, root)
    return best


# ---- regressions of the secondary rows of a root on primary rows ---------------------------------------------------


def _reduced_rank_regression(root, rank, primary_root):
    cross, gram, factor = _normal_equations(root, primary_root)
    solution = torch.cholesky_solve(cross.T, factor).T
    explained = torch.linalg.eigh(solution @ gram @ solution.T).eigenvectors[:, -rank:]
    return explained @ (explained.T @ solution)


def _prune_and_regress(root, pruned, primary_root):
    cross, _, factor = _normal_equations(root, primary_root)
    solution = torch.cholesky_solve(cross.T, factor).T
    mask = _mask_of_smallest(solution.square() / torch.cholesky_inverse(factor).diagonal(), pruned)
    return _masked_regression(root, mask, primary_root)


def _mask_of_smallest(values, count):
    mask = torch.ones_like(values)
    mask.view(-1)[values.flatten().topk(count, largest=False).indices] = 0
    return mask


def _normal_equations(root, primary_root):
    """Cross moments (F - P, P) of secondary and primary rows, the primary ones' own H (P, P) with a small ridge, and
    the Cholesky factor of H."""
    gram = primary_root @ primary_root.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    return root[len(primary_root) :] @ primary_root.T, gram, torch.linalg.cholesky(gram)


def _masked_regression(root, mask, primary_root):
    """A with zeros where the mask has them, minimising tr(A H A^T - 2 A X^T), by conjugate gradients, row by row."""
    cross, gram, _ = _normal_equations(root, primary_root)
    inverse_diagonal = mask / gram.diagonal()
    solution = torch.zeros_like(cross)
    residue = cross * mask
    step = preconditioned = residue * inverse_diagonal
    size = (residue * preconditioned).sum(1, keepdim=True)
    enough = 1e-12 * (cross.square() * inverse_diagonal).sum(1, keepdim=True)
    for _ in range(CONJUGATE_GRADIENTS):
        if (size <= enough).all():
            break
        product = (step @ gram) * mask
        length = size / (step * product).sum(1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
        solution = solution + length * step
        residue = residue - length * product
        preconditioned = residue * inverse_diagonal
        before, size = size, (residue * preconditioned).sum(1, keepdim=True)
        step = preconditioned + size / before.clamp_min(torch.finfo(gram.dtype).tiny) * step
    return solution


def _factorise(coefficients, rank):
    """Balanced factors (F - P, rank) and (rank, P) of coefficients of at most that rank."""
    left, values, right = torch.linalg.svd(coefficients, full_matrices=False)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    column = coefficients.new_zeros(len(coefficients), rank)
    row = coefficients.new_zeros(rank, coefficients.shape[1])
    column[:, :kept] = left[:, :kept] * roots
    row[:kept] = roots[:, None] * right[:kept]
    return column, row
