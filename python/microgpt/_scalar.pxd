# The C types that turn scalar.py into microgpt._scalar. scalar.py itself stays plain Python: Cython reads this
# file beside a copy of it named _scalar.py. Declarations only; a name that is not listed keeps its Python type.
cimport cython


# A graph deeper than about DEPTH steps that is dropped without backward() overflows the C stack (a GPT's: layers * width).
cdef class Value:
    cdef public double data, grad, dleft, dright
    cdef public Value left, right
    cdef public Py_ssize_t users


cdef Value node(double data, Value left, double dleft, Value right=*, double dright=*)


@cython.locals(total=Value, i=Py_ssize_t)
cpdef Value dot(list a, list b)
