"""What the dashboard asks its new tables, for `producer performance`."""

# A page of the dashboard each, for the user :key, as its guide to the new features has them.
QUERIES = {
    "suites of a user": """
        SELECT s.id, s.name, s.configuration FROM {ai_suites} s
        WHERE s.user_id = :key AND s.is_active ORDER BY s.created_at""",
    "tools of a user's suites": """
        SELECT t.id, t.name, t.tool_type, t.configuration FROM {ai_suites} s
        JOIN {ai_tools} t ON t.suite_id = s.id WHERE s.user_id = :key AND t.is_active
        ORDER BY t.name""",
    "tools assigned to a user": """
        SELECT t.id, t.name, a.permissions, a.expires_at FROM {tool_assignments} a
        JOIN {ai_tools} t ON t.id = a.tool_id WHERE a.user_id = :key""",
    "a user's latest usage": """
        SELECT l.id, l.action, l.credits_used, l.started_at FROM {tool_usage_logs} l
        WHERE l.user_id = :key ORDER BY l.started_at DESC LIMIT 50""",
    "usage of a user's tools": """
        SELECT l.tool_id, count(*), sum(l.credits_used) FROM {ai_suites} s
        JOIN {ai_tools} t ON t.suite_id = s.id JOIN {tool_usage_logs} l ON l.tool_id = t.id
        WHERE s.user_id = :key GROUP BY l.tool_id""",
    "a user's balance and credit log": """
        SELECT u.credits_balance, c.operation, c.amount, c.balance_after FROM {users} u
        LEFT JOIN {credit_logs} c ON c.user_id = u.id WHERE u.id = :key
        ORDER BY c.created_at DESC LIMIT 50""",
    "colleagues in a user's department": """
        SELECT o.id, o.user_type FROM {users} u
        JOIN {users} o ON o.department_id = u.department_id WHERE u.id = :key LIMIT 50""",
    "projects of a user with their tools": """
        SELECT p.id, t.name FROM {projects} p LEFT JOIN {ai_tools} t ON t.id = {pointed}
        WHERE p.user_id = :key""",
    "newest listings of the marketplace": """
        SELECT m.id, m.title FROM {marketplace_listings} m WHERE m.is_public
        ORDER BY m.created_at DESC LIMIT 50""",
}
