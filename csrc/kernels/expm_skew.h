// exp(theta - theta^T) and its derivative, for one small matrix.
//
// With A = theta - theta^T and B = A A, which is symmetric and negative: exp(A) = C(B) + A S(B),
// where C(-x^2) = cos x and S(-x^2) = sin(x)/x. Both are minimax polynomials on the interval that
// a bound on A's spectral radius allows; larger matrices are halved s times and the result is
// squared s times. All matrices in between are symmetric or antisymmetric and commute, so a
// derivative needs one product where general matrices need two.
//
// The body is written over a Group, the threads that share a matrix: one on the CPU, a block on
// the GPU. See LoopGroup (cpu/expm_skew_loops.cpp) and BlockGroup (expm_skew.cuh).
#pragma once

#include "platform.h"

namespace revgrad {

constexpr int kMaxMatrix = 64;
constexpr int kTape = 5;    // matrices that the backward pass reuses: B, B^2, B^3, S, first exp
constexpr int kSlots = 15;  // matrices of scratch

inline namespace REVGRAD_ISA {

// Coefficients of cos and sinc for one bound on the spectral radius: the error of values is below
// half a rounding unit, of derivatives below four. revgrad/ops/expm_ladder.py holds the same.
template <class A>
struct Rung {
  int degree;  // in B
  A limit;
  A c[7], s[7];
};

RG_FN Rung<float> rung(int which, float) {
  switch (which) {
    case 0:
      return {2, 0.15f, {1.0f, 0.499999912144680474f, 0.0416354276506409212f},
              {1.0f, 0.166666654114786082f, 0.0083288702681081796f}};
    case 1:
      return {3, 0.502f,
              {1.0f, 0.499999987648269065f, 0.0416657842767503201f, 0.00137954321491970991f},
              {1.0f, 0.166666665293203483f, 0.00833323521787875117f, 0.000197373695543845152f}};
    default:
      return {6, 2.65f,
              {1.0f, 0.499999999384742756f, 0.0416666603559696162f, 0.00138887838230303219f,
               0.0000247951754936981397f, 2.73797392908198315e-7f, 1.85882538086214331e-9f},
              {1.0f, 0.166666666625221321f, 0.00833333290824937754f, 0.000198411990878834419f,
               2.7553003683820441e-6f, 2.49327073041740297e-8f, 1.45236005919209819e-10f}};
  }
}

RG_FN Rung<double> rung(int which, double) {
  switch (which) {
    case 0:
      return {2, 0.00252, {1.0, 0.499999999999992999, 0.0416666578466675418},
              {1.0, 0.166666666666665666, 0.00833333207333343057}};
    case 1:
      return {3, 0.0281,
              {1.0, 0.499999999999999618, 0.0416666666579686191, 0.00138885951380680191},
              {1.0, 0.166666666666666624, 0.00833333333236688137, 0.000198409434508831463}};
    default:
      return {6, 0.56,
              {1.0, 0.499999999999999995, 0.0416666666666654483, 0.0013888888888435583,
               0.0000248015866847246656, 2.75569397259774245e-7, 2.07691042003785379e-9},
              {1.0, 0.166666666666666666, 0.00833333333333325207, 0.000198412698409675019,
               2.75573188125692362e-6, 2.50518552902447862e-8, 1.59872546322611882e-10}};
  }
}

// Which rung serves a matrix, and how often it is halved first.
struct Plan {
  int rung, halvings;
};

template <class A>
RG_FN Plan plan_for(A radius) {
  for (int which = 0; which < 2; ++which)
    if (radius <= rung(which, A()).limit) return {which, 0};
  const A limit = rung(2, A()).limit;
  int halvings = 0;
  while (radius > limit && halvings < 60) {  // not a number ends here at once, and stays one
    radius *= A(0.5);
    ++halvings;
  }
  return {2, halvings};
}

template <class A>
RG_FN A halved(int times) {
  A scale = 1;
  for (int i = 0; i < times; ++i) scale *= A(0.5);
  return scale;
}

// A bound on the spectral radius of A from B = A A: two norms of B, and each of its eigenvalues
// but a zero comes twice.
template <class Group, class A>
RG_BODY A radius_of(Group& g, const A* b) {
  const int n = g.n, ld = g.ld;
  const A widest = g.max([=](int i) {
    A sum = 0;
    for (int j = 0; j < n; ++j) sum += b[i * ld + j] < 0 ? -b[i * ld + j] : b[i * ld + j];
    return sum;
  });
  // In units of the first norm, so that squares neither overflow nor vanish.
  const A unit = widest > 0 ? 1 / widest : A(0);
  const A squares = g.sum([=](int i) {
    A sum = 0;
    for (int j = 0; j < n; ++j) sum += (b[i * ld + j] * unit) * (b[i * ld + j] * unit);
    return sum;
  });
  const A other = widest * Group::root(squares * A(0.5));
  return Group::root(other < widest ? other : widest);
}

// out = p[0] I + p[1] B + p[2] B2 + p[3] B3
template <class Group, class A>
RG_BODY void polynomial(Group& g, const A* p, const A* b, const A* b2, const A* b3, A* out) {
  const A p0 = p[0], p1 = p[1], p2 = p[2], p3 = p[3];
  g.each([=](int i, int j, int at) {
    out[at] = (i == j ? p0 : A(0)) + p1 * b[at] + p2 * b2[at] + (p3 != 0 ? p3 * b3[at] : A(0));
  });
}

// out = (m + m^T) / 2 or (m - m^T) / 2
template <class Group, class A>
RG_BODY void half_sum(Group& g, const A* m, A sign, A* out) {
  const int ld = g.ld;
  g.each([=](int i, int j, int at) { out[at] = A(0.5) * (m[at] + sign * m[j * ld + i]); });
}

// `tape` may be null; else it takes kTape matrices.
template <class Group, class A>
RG_BODY void expm_skew(Group& g, const A* theta, A* result, A* tape, int32_t* plan) {
  const int n = g.n;
  A *a = g.slot(0), *b = g.slot(1), *b2 = g.slot(2), *b3 = g.slot(3), *s = g.slot(4),
    *t = g.slot(5), *u = g.slot(6), *e = g.slot(7);
  g.each([=](int i, int j, int at) { a[at] = theta[i * n + j] - theta[j * n + i]; });
  g.matmul(b, a, a);
  const Plan p = plan_for(radius_of(g, b));
  const Rung<A> r = rung(p.rung, A());
  const A scale = halved<A>(p.halvings);
  g.each([=](int, int, int at) {
    a[at] *= scale;
    b[at] *= scale * scale;
  });
  g.matmul(b2, b, b);
  if (r.degree >= 3) g.matmul(b3, b, b2);
  if (r.degree == 6) {
    const A high_s[4] = {0, r.s[4], r.s[5], r.s[6]};
    polynomial(g, high_s, b, b2, b3, t);
    g.matmul(u, b3, t);
  }
  polynomial(g, r.s, b, b2, b3, s);
  if (r.degree == 6) g.each([=](int, int, int at) { s[at] += u[at]; });
  g.matmul(e, a, s);
  if (r.degree == 6) {
    const A high_c[4] = {0, r.c[4], r.c[5], r.c[6]};
    polynomial(g, high_c, b, b2, b3, t);
    g.matmul(u, b3, t);
    g.each([=](int, int, int at) { e[at] += u[at]; });
  }
  polynomial(g, r.c, b, b2, b3, t);
  g.each([=](int, int, int at) { e[at] += t[at]; });
  if (tape != nullptr) {
    const A* kept[kTape] = {b, b2, b3, s, e};
    const bool cubed = r.degree >= 3;
    for (int k = 0; k < kTape; ++k) {
      const A* from = kept[k];
      A* to = tape + k * n * n;
      const bool unset = k == 2 && !cubed;
      g.each([=](int i, int j, int at) { to[i * n + j] = unset ? A(0) : from[at]; });
    }
  }
  for (int k = 0; k < p.halvings; ++k) {
    g.matmul(t, e, e);
    A* swap = e;
    e = t;
    t = swap;
  }
  g.each([=](int i, int j, int at) { result[i * n + j] = e[at]; });
  g.once([=] {
    plan[0] = p.rung;
    plan[1] = p.halvings;
  });
}

// Copies a matrix that lies densely into a slot.
template <class Group, class A>
RG_BODY void fetch(Group& g, const A* from, A* slot) {
  const int n = g.n;
  g.each([=](int i, int j, int at) { slot[at] = from[i * n + j]; });
}

// Takes a gradient with respect to X^(2^s), X = exp(A / 2^s) =: tape[4], to one with respect to X.
// As X is orthogonal, the gradient is X W, and only W's antisymmetric part counts; W goes through
// one squaring as W + X W X^T. These maps commute: the smallest power may come first, so that no
// power of X need be kept.
template <class Group, class A>
RG_BODY void unsquare(Group& g, const A* result, const A* first, int halvings, A* d) {
  const int n = g.n, ld = g.ld;
  A *w = g.slot(6), *t = g.slot(7), *u = g.slot(8), *x = g.slot(9), *xt = g.slot(10);
  g.each([=](int i, int j, int at) { t[at] = result[j * n + i]; });
  g.matmul(u, t, d);
  half_sum(g, u, A(-1), w);
  fetch(g, first, x);
  for (int k = 0; k < halvings; ++k) {
    A* from = x;
    g.each([=](int i, int j, int at) { xt[at] = from[j * ld + i]; });
    g.matmul(t, x, w);
    g.matmul(u, t, xt);
    g.each([=](int, int, int at) { w[at] += u[at]; });
    if (k + 1 == halvings) break;
    g.matmul(t, x, x);
    A* swap = x;
    x = t;
    t = swap;
  }
  fetch(g, first, t);
  g.matmul(d, t, w);
}

// gradient = M - M^T, where M is the adjoint of exp's derivative at A applied to `grad`.
template <class Group, class A>
RG_BODY void expm_skew_backward(Group& g, const A* grad, const A* theta, const A* result,
                              const A* tape, const int32_t* plan, A* gradient) {
  const int n = g.n, ld = g.ld, area = n * n;
  const Rung<A> r = rung(plan[0], A());
  const int halvings = plan[1];
  const A scale = halved<A>(halvings);
  A *a = g.slot(0), *b = g.slot(1), *b2 = g.slot(2), *b3 = g.slot(3), *s = g.slot(4),
    *d = g.slot(5);
  fetch(g, grad, d);
  if (halvings > 0) unsquare(g, result, tape + 4 * area, halvings, d);
  g.each([=](int i, int j, int at) { a[at] = scale * (theta[i * n + j] - theta[j * n + i]); });
  fetch(g, tape, b);
  fetch(g, tape + area, b2);
  fetch(g, tape + 2 * area, b3);
  fetch(g, tape + 3 * area, s);

  // exp = C + A S
  A *dc = g.slot(6), *da = g.slot(7), *ds = g.slot(8), *u = g.slot(9), *v = g.slot(10);
  half_sum(g, d, A(1), dc);
  half_sum(g, d, A(-1), v);
  g.matmul(u, a, v);
  half_sum(g, u, A(1), ds);
  g.each([=](int, int, int at) { ds[at] = -ds[at]; });
  g.matmul(u, v, s);
  half_sum(g, u, A(-1), da);

  // C and S as polynomials of B, B^2, B^3
  A *db = g.slot(11), *db2 = g.slot(12), *db3 = g.slot(13), *w = g.slot(14);
  const A c1 = r.c[1], c2 = r.c[2], c3 = r.c[3], s1 = r.s[1], s2 = r.s[2], s3 = r.s[3];
  g.each([=](int, int, int at) {
    db[at] = c1 * dc[at] + s1 * ds[at];
    db2[at] = c2 * dc[at] + s2 * ds[at];
  });
  if (r.degree == 3) g.each([=](int, int, int at) { db3[at] = c3 * dc[at] + s3 * ds[at]; });
  if (r.degree == 6) {
    const A c4 = r.c[4], c5 = r.c[5], c6 = r.c[6], s4 = r.s[4], s5 = r.s[5], s6 = r.s[6];
    polynomial(g, r.c + 3, b, b2, b3, u);
    g.matmul(v, dc, u);
    polynomial(g, r.s + 3, b, b2, b3, u);
    g.matmul(w, ds, u);
    g.each([=](int i, int j, int at) {
      db3[at] = A(0.5) * (v[at] + v[j * ld + i] + w[at] + w[j * ld + i]);
    });
    g.matmul(v, b3, dc);
    g.matmul(w, b3, ds);
    g.each([=](int i, int j, int at) {
      const A vs = A(0.5) * (v[at] + v[j * ld + i]), ws = A(0.5) * (w[at] + w[j * ld + i]);
      db[at] += c4 * vs + s4 * ws;
      db2[at] += c5 * vs + s5 * ws;
      db3[at] += c6 * vs + s6 * ws;
    });
  }

  // B^3 = B B^2, B^2 = B B, B = A A
  if (r.degree >= 3) {
    g.matmul(u, db3, b2);
    g.matmul(v, b, db3);
    g.each([=](int i, int j, int at) {
      db[at] += A(0.5) * (u[at] + u[j * ld + i]);
      db2[at] += A(0.5) * (v[at] + v[j * ld + i]);
    });
  }
  g.matmul(u, b, db2);
  g.each([=](int i, int j, int at) { db[at] += u[at] + u[j * ld + i]; });
  g.matmul(u, a, db);
  g.each([=](int i, int j, int at) {
    gradient[i * n + j] = 2 * scale * (da[at] + u[j * ld + i] - u[at]);
  });
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
