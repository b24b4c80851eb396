// Thrust's macros that open and close its namespace, which its own and other headers use.
#pragma once
#define THRUST_NAMESPACE_BEGIN namespace thrust {
#define THRUST_NAMESPACE_END }
