r"""Least-squares fit of LinearConv to given filters: primary filters and coefficients of the variant.

    W ~ C W_p,    C = [I ; A],    W (F, K),    W_p (P, K),    A (F - P, P)

For any A and any weighting of inputs, the best primary filters are W_p = T W with T = C^+ = (I + A^T A)^-1 [I  A^T].
The residual is (I - C T) W. Therefore the functions solve for A only. They need only a root S of the second moments
S S^T (F, F) of the filters: S = W fits the filters, S S^T = E[y y^T] of the layer's outputs y fits the outputs.

    full_rank   A of the best subspace, the first P left singular vectors of S (Eckart-Young)
    low_rank    A = column @ row: alternates between the best A of the rank (reduced-rank regression) and the best W_p
    sparse      A with a given number of zeros: alternates between the zeros with the least loss and the best W_p
    by_gradient A as a differentiable function of any parameters: L-BFGS from the parameters closest to full rank

An alternation lowers the error in each round. There are two starts: the first P filters as primary filters with the
secondary filters regressed on them, and the full-rank solution. All computations are in float64.
"""

import math
from collections.abc import Callable
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

LIMITS = [10 ** (-exponent / 4) for exponent in range(17)]  # of singular values: 1, 0.56, ..., 1e-4
RIDGE = 1e-7  # share of the primary filters' mean second moment; prevents huge coefficients in regressions
ROUNDING = 2**-9  # root mean square of relative rounding errors in bfloat16, in which float32 networks often run
MAX_ROUNDS = 100
MAX_MASK_ROUNDS = 4  # rounds that choose the coefficients to prune
MIN_GAIN = 1e-4  # least decrease of the error, as a share, to start another round
MAX_CG_ITERATIONS = 60  # of conjugate gradients
MAX_LBFGS_ITERATIONS = 50  # for each of the two objectives
CG_TOLERANCE = 1e-12  # relative squared residual in the preconditioner's norm, which ends the iterations


def root_of(filters: Tensor) -> Tensor:
    """Return a root S (F, min(F, K)) of the second moments S S^T = W W^T of filters (F, ...), in float64."""
    rows = filters.detach().flatten(1).double()
    if rows.shape[1] <= rows.shape[0]:
        return rows
    return torch.linalg.qr(rows.T, mode="r").R.T


def root_of_moments(moments: Tensor) -> Tensor:
    """Return a root S (F, F) of symmetric second moments S S^T (F, F); negative eigenvalues are set to zero."""
    values, vectors = torch.linalg.eigh(moments.double())
    return vectors * values.clamp_min(0).sqrt()


def primary_of(coefficients: Tensor, filters: Tensor, metric: Tensor | None = None) -> Tensor:
    """Return the best primary filters T W (P, ...), float64, for coefficients A (F - P, P) of filters W (F, ...).

    With a metric M (F, F), the error is tr(E^T M E) of the residual E, and T = (C^T M C)^-1 C^T M.
    """
    primary = coefficients.shape[1]
    rows = filters.detach().double().flatten(1)
    stacked = torch.cat((torch.eye(primary, dtype=rows.dtype, device=rows.device), coefficients))  # C (F, P)
    weighted = stacked if metric is None else metric @ stacked
    best = torch.cholesky_solve(weighted.T @ rows, torch.linalg.cholesky(weighted.T @ stacked))
    return best.view(primary, *filters.shape[1:])


def residual(coefficients: Tensor, root: Tensor, metric: Tensor | None = None) -> Tensor:
    """Return the residual (I - C T) S of a root S (F, r) with the best primary filters."""
    best = primary_of(coefficients, root, metric)
    return root - torch.cat((best, coefficients @ best))


def error(coefficients: Tensor, root: Tensor) -> float:
    """Return the Frobenius norm of the residual of a root (F, r) with the best primary filters."""
    return torch.linalg.vector_norm(residual(coefficients, root)).item()


def components(root: Tensor, metric: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the principal components of a root S (F, r) in a metric M = R R (F, F); by default M is the identity.

    Returns:
        The singular values s of R S in descending order, and B, D^T (F, r): B[:, :P] D[:P] S is the best approximation
        of S with rank P, and the tail of s^2 is its error.
    """
    if metric is None:
        left, values, _ = torch.linalg.svd(root, full_matrices=False)
        return values, left, left.T
    squares, vectors = torch.linalg.eigh(metric)
    weighting = (vectors * squares.sqrt()) @ vectors.T  # R
    left, values, _ = torch.linalg.svd(weighting @ root, full_matrices=False)
    return values, (vectors / squares.sqrt()) @ vectors.T @ left, left.T @ weighting


def full_rank(root: Tensor, primary: int, metric: Tensor | None = None) -> Tensor:
    """Return the coefficients A (F - P, P) of the best LinearConv with P primary filters for a root S (F, r).

    With U an orthonormal basis of the first P components of S, A = U_s U_p^-1 would be exact, but huge for U_p close to
    singular, and huge coefficients multiply rounding errors. Therefore small singular values of U_p are raised to a
    limit: the secondary filters stay exact, the primary filters change by less than the limit, and the norm of A is at
    most its reciprocal. The limit is one of `LIMITS`, with the least sum of two squared errors: of the fit, and of the
    secondary filters if coefficients and primary filters p_j have rounding errors of `ROUNDING`,

        |(I - C T) S|^2 + ROUNDING^2 sum_ij A_ij^2 |p_j|^2
    """
    left = torch.linalg.qr(components(root, metric)[1][:, :primary]).Q
    vectors, values, adjoint = torch.linalg.svd(left[:primary], full_matrices=False)
    least, chosen = math.inf, left.new_zeros(0)
    for limit in LIMITS:
        coefficients = left[primary:] @ adjoint.T / values.clamp_min(limit) @ vectors.T
        best = primary_of(coefficients, root, metric)
        remaining = root - torch.cat((best, coefficients @ best))
        rounded = coefficients.square() @ best.square().sum(1)  # squared rounding errors of the secondary filters
        if metric is None:
            loss = remaining.square().sum() + ROUNDING**2 * rounded.sum()
        else:
            loss = (remaining * (metric @ remaining)).sum() + ROUNDING**2 * metric.diagonal()[primary:] @ rounded
        if loss < least:
            least, chosen = loss.item(), coefficients
    return chosen


def low_rank(root: Tensor, primary: int, rank: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors (F - P, R) and (R, P) of the coefficients for a root S (F, r), with balanced norms.

    The alternation for rank R also starts from `start` (F - P, P), such as full rank. Zeros pad factors of higher rank.
    """
    if rank < min(start.shape):
        start = _best_alternation(root, primary, start, partial(_reduced_rank_regression, root, rank))
    left, values, right = torch.linalg.svd(start, full_matrices=False)
    roots = values[:rank].sqrt()
    missing = rank - len(roots)
    return F.pad(left[:, :rank] * roots, (0, missing)), F.pad(roots[:, None] * right[:rank], (0, 0, 0, missing))


def sparse(root: Tensor, primary: int, pruned: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients (F - P, P) with `pruned` zeros for a root S (F, r), and their mask of zeros and ones.

    The alternation also starts from `start`, such as full rank. The pruned coefficients are those with the least loss
    a^2 / (H^-1)_jj after the other coefficients of the row compensate, with H the second moments of the primary filters
    (Hassibi & Stork, "Optimal Brain Surgeon", 1993).
    """
    chosen = _best_alternation(root, primary, start, partial(_prune_and_regress, root, pruned), MAX_MASK_ROUNDS)
    mask = _mask_of_smallest(chosen.abs(), pruned)
    return _alternate(root, primary_of(chosen, root), partial(masked_regression, root, mask)), mask


def _best_alternation(root, primary, start, fit, max_rounds=MAX_ROUNDS):
    found = [_alternate(root, first, fit, max_rounds) for first in (root[:primary], primary_of(start, root))]
    return min(found, key=partial(error, root=root))


def _alternate(root, primary_root, fit, max_rounds=MAX_ROUNDS):
    """Alternate between `fit(primary rows of the root)` and the best primary rows; return the best coefficients."""
    best, least = None, float("inf")
    for _ in range(max_rounds):
        coefficients = fit(primary_root)
        loss = error(coefficients, root)
        is_last = not least - loss > MIN_GAIN * loss
        if best is None or loss < least:
            best, least = coefficients, loss
        if is_last:
            break
        primary_root = primary_of(coefficients, root)
    return best


def _reduced_rank_regression(root, rank, primary_root):
    cross, gram, factor = _normal_equations(root, primary_root)
    solution = torch.cholesky_solve(cross.T, factor).T
    explained = torch.linalg.eigh(solution @ gram @ solution.T).eigenvectors[:, -rank:]
    return explained @ (explained.T @ solution)


def _prune_and_regress(root, pruned, primary_root):
    cross, _, factor = _normal_equations(root, primary_root)
    solution = torch.cholesky_solve(cross.T, factor).T
    mask = _mask_of_smallest(solution.square() / torch.cholesky_inverse(factor).diagonal(), pruned)
    return masked_regression(root, mask, primary_root)


def _mask_of_smallest(values, count):
    mask = torch.ones_like(values)
    mask.view(-1)[values.flatten().topk(count, largest=False).indices] = 0
    return mask


def _normal_equations(root, primary_root):
    """Moments X (F - P, P) of secondary and primary rows, H (P, P) of primary rows with a ridge, and H's factor."""
    gram = primary_root @ primary_root.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    return root[len(primary_root) :] @ primary_root.T, gram, torch.linalg.cholesky(gram)


def masked_regression(root: Tensor, mask: Tensor, primary_root: Tensor) -> Tensor:
    """Return A (F - P, P), zero where the mask is zero, that regresses secondary rows of a root S on primary rows T S.

    Conjugate gradients minimise tr(A H A^T - 2 A X^T) for all rows of A at once.
    """
    cross, gram, _ = _normal_equations(root, primary_root)
    tiny = torch.finfo(gram.dtype).tiny
    preconditioner = mask / gram.diagonal()
    solution, remainder = torch.zeros_like(cross), cross * mask
    direction = remainder * preconditioner
    squared = (remainder * direction).sum(1, keepdim=True)  # (F - P, 1)
    enough = CG_TOLERANCE * squared
    for _ in range(MAX_CG_ITERATIONS):
        if (squared <= enough).all():
            break
        product = (direction @ gram) * mask
        length = squared / (direction * product).sum(1, keepdim=True).clamp_min(tiny)
        solution = solution + length * direction
        remainder = remainder - length * product
        preconditioned = remainder * preconditioner
        before, squared = squared, (remainder * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + squared / before.clamp_min(tiny) * direction
    return solution


def by_gradient(
    root: Tensor, factors: Callable[[], tuple[Tensor, ...]], parameters: list[Tensor], start: Tensor
) -> None:
    """Fit parameters in place for a small error of A (F - P, P), the product of `factors()`, on a root S (F, r).

    The objectives are the distance from `start`, such as full rank, and then the error with the best primary filters.
    """

    def minimise(objective):
        optimizer = torch.optim.LBFGS(parameters, max_iter=MAX_LBFGS_ITERATIONS, line_search_fn="strong_wolfe")

        def loss_with_gradients():
            optimizer.zero_grad()
            loss = objective(reduce(torch.matmul, factors())).square().sum()
            loss.backward()
            return loss

        optimizer.step(loss_with_gradients)

    scale = torch.linalg.vector_norm(root).clamp_min(torch.finfo(root.dtype).tiny)
    with torch.enable_grad():
        minimise(lambda coefficients: coefficients - start)
        minimise(lambda coefficients: residual(coefficients, root / scale))
