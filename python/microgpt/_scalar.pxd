# The C types that turn scalar.py into microgpt._scalar. scalar.py itself stays plain Python: Cython reads this
# file beside a copy of it named _scalar.py. Declarations only; a name that is not listed keeps its Python type.
cimport cython


# Dropping a compiled chain of over 500,000 steps (at 8 MiB of stack) without backward() overflows the stack, for each
# link is freed by a nested call. A GPT's longest chain has some hundred steps a layer.
cdef class Value:
    cdef public double data, grad, dleft, dright
    cdef public Value left, right
    cdef public Py_ssize_t users


cdef Value node(double data, Value left, double dleft, Value right=*, double dright=*)


@cython.locals(total=Value, i=Py_ssize_t)
cpdef Value dot(list a, list b)
